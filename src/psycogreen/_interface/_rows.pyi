from psycogreen._interface.rows import END, READ, YIELD, write_rows

__all__ = ["END", "READ", "YIELD", "write_rows"]
