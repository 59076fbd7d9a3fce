"""Programs compiled by AOTInductor, constants outside the library."""
