"""Report over finished and unfinished runs: collect, summarize, print, HTML page."""
