"""Read a manifest: text to a Manifest. Includes the manifests that ship with seqlm."""
