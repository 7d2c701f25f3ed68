"""`python -m ptm_ray` is `ptm-ray`."""

from ptm_ray.cli.main import main

if __name__ == "__main__":
    main()
