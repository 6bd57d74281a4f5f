"""Test whether a user's own model keeps the contract of docs/guides/own-model.md. Started as a program of its own."""
