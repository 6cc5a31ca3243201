"""From the bytes of images to a batch of a flow's inputs."""
