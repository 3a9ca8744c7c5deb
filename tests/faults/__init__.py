"""The fault kit: a proxy that spoils connections, a history of what the system did, a checker of its promises."""
