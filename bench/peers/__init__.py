"""shmstream's server beside nginx, Varnish, Squid, Traffic Server, and what Python users do."""
