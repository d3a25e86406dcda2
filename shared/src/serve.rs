//! The accept loop: connections under named limits, and a stop that finishes what is in flight.
