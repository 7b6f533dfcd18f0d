import sys

from histolight.cli import main

sys.exit(main())
