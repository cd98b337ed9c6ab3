"""The machine that serves: processes, ports, records, and what is to be served."""
