"""Text generation engines behind one interface. Their own types never leave this package."""
