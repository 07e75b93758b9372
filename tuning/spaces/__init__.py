"""What a search may choose: models, resolutions, training; the spaces that come with rayscan."""
