"""`art demo`: a real model learns a real task on this machine, and a report says what it learned."""
