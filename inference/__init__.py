"""What answers: models, versions, routing, the serving consumer."""
