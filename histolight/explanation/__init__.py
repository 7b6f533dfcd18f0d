"""What `explain` knows: where a network looks, and its page. (`histolight.explain` is a function of the API.)"""
