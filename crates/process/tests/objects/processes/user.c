// object: a process of another user than root, with limits of its own
// status: captured
// user: nobody
#include "object.h"
#include <sys/resource.h>

int main(void) {
    struct rlimit limit = {0};
    uid_t user = getuid();
    CHECK(user && !setuid(user));
    ready();
    int step = 0;
    do {
        struct rlimit now;
        CHECK(!getrlimit(RLIMIT_NOFILE, &now));
        if (step++) CHECK_EQUAL(now.rlim_cur, limit.rlim_cur);
        limit = now;
        limit.rlim_cur = 100 + step % 50;
        CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
        CHECK(getuid() == user && geteuid() == user && getgid() != 0);
        // What only root may.
        CHECK(seteuid(0) < 0 && errno == EPERM);
    } while (go_on());
    PASS();
}
