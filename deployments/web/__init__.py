"""What people and programs ask of deployments over HTTP: pages, forms, REST. Stories do the work."""
