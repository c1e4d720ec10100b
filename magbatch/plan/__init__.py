"""The plan: input files as shards of rows, frozen before the first row is answered.

Imports within: column_kinds, footers, output_names, plan, windows < grouping, inputs < columns, sharding < make.
"""
