// object: something that the program has mounted or unmounted
// status: refused: a mount of its own at /mnt
// note: mount it on the hosts; protected again when it has been undone
#include "object.h"
#include <sys/mount.h>

int main(void) {
    CHECK(!mount("none", "/mnt", "tmpfs", 0, 0));
    ready();
    while (go_on()) {}
    PASS();
}
