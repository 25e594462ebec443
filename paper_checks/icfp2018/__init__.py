"""What `paper_checks.modular_inference_icfp2018` is made of."""
