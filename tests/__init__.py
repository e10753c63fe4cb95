# SPDX-License-Identifier: Apache-2.0
# mim installs a package of this name; without this file it would be found first.
