"""What events mean: record types, Avro schemas, registry, codec."""
