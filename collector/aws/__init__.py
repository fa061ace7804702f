"""All that knows boto3: clients, Regions, listings, and what their answers mean."""
