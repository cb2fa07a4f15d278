"""The lab: attackers, an innocent client and a protected node in network namespaces on this machine."""
