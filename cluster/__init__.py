"""rayscan's command line and everything that touches machines: sessions, jobs, checks."""
