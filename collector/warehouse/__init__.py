"""All that knows SQLAlchemy: tables, views, the merge, engines, the embedded server, migrations."""
