// object: capabilities: permitted, effective, inheritable, ambient, bounding; of a user other than root
// status: captured
// note: those that the other host's agent has
#include "object.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};

int main(void) {
    gid_t groups[] = {7, 11};
    struct __user_cap_data_struct set[2] = {0}, got[2];
    CHECK(!prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0));
    CHECK(!prctl(PR_SET_KEEPCAPS, 1));
    CHECK(!setgroups(2, groups) && !setresgid(101, 102, 103) && !setresuid(201, 202, 201));
    set[0].permitted = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN | 1 << CAP_KILL;
    set[0].inheritable = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN;
    ready();
    for (int round = 0; go_on(); round++) {
        set[0].effective = round % 2 ? 1 << CAP_KILL : 1 << CAP_CHOWN | 1 << CAP_KILL;
        CHECK(!syscall(SYS_capset, &header, set));
        CHECK(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
        usleep(1000);
        CHECK(!syscall(SYS_capget, &header, got));
        CHECK(!memcmp(set, got, sizeof set));
        CHECK_EQUAL(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0), 1);
        CHECK_EQUAL(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0), 0);
        CHECK_EQUAL(prctl(PR_CAPBSET_READ, CAP_SYS_BOOT, 0, 0, 0), 0);
        CHECK_EQUAL(prctl(PR_CAPBSET_READ, CAP_KILL, 0, 0, 0), 1);
        uid_t ids[3];
        CHECK(!getresuid(&ids[0], &ids[1], &ids[2]) && ids[0] == 201 && ids[1] == 202 && ids[2] == 201);
        CHECK(!getresgid(&ids[0], &ids[1], &ids[2]) && ids[0] == 101 && ids[1] == 102 && ids[2] == 103);
        CHECK(getgroups(2, groups) == 2 && groups[0] == 7 && groups[1] == 11);
    }
    PASS();
}
