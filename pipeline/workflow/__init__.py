"""The stages as jobs of a cluster: rules, command lines, profiles, and what became of the jobs."""
