"""Documents -> pages: fetched, told apart, rendered where a hostile one can harm nothing but itself."""
