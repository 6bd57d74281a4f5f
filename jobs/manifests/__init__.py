"""From text to a Manifest, and the manifests that come along."""
