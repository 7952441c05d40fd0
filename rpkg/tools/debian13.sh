#!/bin/sh
# Tests the R package in a chroot of Debian 13, which has R 4.5, Seurat 5.2 and reticulate 1.41.
# As root on a Debian machine with debootstrap: rpkg/tools/debian13.sh FOLDER VENV
# FOLDER: where the chroot is made, or is already. VENV: an environment in which scdiffkit is installed.
set -eu
root=$1
venv=$(cd "$2" && pwd)
repository=$(cd "$(dirname "$0")/../.." && pwd)
python=$(dirname "$(dirname "$(readlink -f "$venv/bin/python")")") # the installation that the environment stands on
packages="r-base-core,r-cran-seurat,r-cran-reticulate,r-cran-testthat,r-cran-withr,r-bioc-singlecellexperiment,r-cran-ggplot2"

if [ ! -e "$root/.ready" ]; then
    # the mirror that this machine itself installs from
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)
    debootstrap --variant=minbase --no-check-gpg trixie "$root" "$mirror"
    cp /etc/resolv.conf "$root/etc/" 2>/dev/null || true
    for file in /etc/apt/apt.conf.d/*; do cp "$file" "$root/etc/apt/apt.conf.d/"; done
    chroot "$root" apt-get update -qq
    chroot "$root" sh -c "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(echo "$packages" | tr , ' ')" >/dev/null
    touch "$root/.ready"
fi

for folder in "$venv" "$python" "$repository"; do
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
done
mount -t proc proc "$root/proc"
trap 'for folder in /proc "$repository" "$python" "$venv"; do umount -l "$root$folder"; done' EXIT

chroot "$root" env -i HOME=/root PATH=/usr/bin:/bin LANG=C.UTF-8 PYTHONPATH="$repository" RETICULATE_PYTHON="$venv/bin/python" \
    SCDIFF_R_TESTS=1 OMP_NUM_THREADS=1 sh -c "
    mkdir -p /tmp/library
    R CMD INSTALL --no-docs -l /tmp/library '$repository/rpkg' >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
    Rscript -e 'for (p in c(\"Seurat\", \"SeuratObject\", \"reticulate\")) cat(p, as.character(packageVersion(p)), \"\n\")'
    R_LIBS=/tmp/library Rscript '$repository/rpkg/tools/test.R' '$repository/rpkg'"
