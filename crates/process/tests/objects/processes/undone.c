// object: mounts that have been undone, and calls for mounts and namespaces that failed
// status: captured
// note: what counts is what is there
#include "object.h"
#include <sched.h>
#include <sys/mount.h>

int main(void) {
    CHECK(!mount("none", "/mnt", "tmpfs", 0, 0));
    CHECK(!umount("/mnt"));
    CHECK(mount("none", "/nonexistent", "tmpfs", 0, 0) == -1);
    CHECK(umount("/nonexistent") == -1);
    CHECK(setns(0, CLONE_NEWNET) == -1);
    CHECK(unshare(-1) == -1);
    ready();
    while (go_on()) CHECK(umount("/nonexistent") == -1);
    PASS();
}
