"""What people and programs ask of nodes and clusters over HTTP: pages, forms, sockets, REST. Stories do the work."""
