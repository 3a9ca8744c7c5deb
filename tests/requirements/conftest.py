"""What several requirements need: the databases of the integration tests."""

from tests.integration.conftest import database, database_url

__all__ = ["database", "database_url"]
