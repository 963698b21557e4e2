// object: root with few capabilities
// status: captured
#include "object.h"
#include <linux/capability.h>
#include <sys/syscall.h>

int main(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct set[2] = {0}, got[2];
    set[0].permitted = 1 << CAP_CHOWN | 1 << CAP_SETUID;
    CHECK(!syscall(SYS_capset, &header, set));
    ready();
    for (int round = 0; go_on(); round++) {
        set[0].effective = round % 2 ? 1 << CAP_CHOWN : 0;
        CHECK(!syscall(SYS_capset, &header, set));
        usleep(1000);
        CHECK(!syscall(SYS_capget, &header, got));
        CHECK(!memcmp(set, got, sizeof set));
        CHECK_EQUAL(getuid(), 0);
    }
    PASS();
}
