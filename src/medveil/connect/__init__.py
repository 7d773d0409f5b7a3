"""A federation of real institutions: certificates and kits, processes, jobs, and what a site allows."""
