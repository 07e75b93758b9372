"""How one model is made, from a recipe or the flags to a bundle; the recipes that come with rayscan."""
