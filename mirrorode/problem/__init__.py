"""What is given: potentials, networks, samples."""
