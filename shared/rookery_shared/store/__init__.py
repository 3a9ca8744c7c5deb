"""Where adapters live: one interface, two drivers, and the publish protocol on top."""
