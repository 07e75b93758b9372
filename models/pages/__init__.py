"""What every page is made of: its frame and style, how numbers are written, how charts and pictures are drawn.

The model card stands on these, and so do the reports of `pipelines/results/pages/`. Heavy (matplotlib): imported only
where a page is made.
"""
