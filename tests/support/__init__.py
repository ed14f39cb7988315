"""What tests are made of: servers, clients, interpreters, stores; nothing here is a test."""
