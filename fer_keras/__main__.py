"""`python -m fer_keras` is the command line `fer-keras`."""

import sys

from fer_keras.cli import main

sys.exit(main())
