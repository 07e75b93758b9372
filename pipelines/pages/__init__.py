"""Pages for people: one HTML file each, that loads nothing. Imported only where a page is made."""
