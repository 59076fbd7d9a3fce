"""Examples that use Tessera as its users do."""
