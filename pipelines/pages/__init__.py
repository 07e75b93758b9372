"""Reports: one self-contained HTML file each. Imported only where a page is made (matplotlib is slow to load)."""
