"""histolight: which model finds metastatic tissue in histology tiles best, and how sure are we?"""
