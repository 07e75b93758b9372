"""The pages of `rayscan report` and `rayscan evaluate --out`: one module a page, over one frame."""
