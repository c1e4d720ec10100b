"""Helpers that several tests share: small jobs, real servers, files of every kind."""
