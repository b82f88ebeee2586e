"""The common harness of the attack suite: a gateway process, a load generator, stub targets, the oracle's checks."""
