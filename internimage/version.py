# SPDX-License-Identifier: Apache-2.0
"""The version of the distribution, in its only place."""

__version__ = '0.1.0'
