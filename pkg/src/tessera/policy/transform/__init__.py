"""How one program becomes another one (Optimus, EuroSys'24). Pure: two structures and costs in, a plan out."""
