// object: a classic BPF filter on a UDP socket (SO_ATTACH_FILTER), locked
// status: captured
// note: filters of other kinds cannot be had (bpf is hidden)
#include "object.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int to = socket(AF_INET, SOCK_DGRAM, 0), from = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
    socklen_t length = sizeof here;
    CHECK(bind(to, (void *)&here, sizeof here) == 0 && getsockname(to, (void *)&here, &length) == 0);
    // The first byte behind the UDP header must be 'y'.
    struct sock_filter code[] = {
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 8},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 'y'},
        {BPF_RET | BPF_K, 0, 0, 0xffff},
        {BPF_RET | BPF_K, 0, 0, 0},
    };
    struct sock_fprog program = {4, code};
    CHECK(setsockopt(to, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    CHECK(setsockopt(to, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on) == 0);
    unsigned char bytes[2], count = 0;
    ready();
    do {
        unsigned char yes[2] = {'y', count}, no[2] = {'n', count};
        CHECK(sendto(from, no, 2, 0, (void *)&here, sizeof here) == 2);
        CHECK(sendto(from, yes, 2, 0, (void *)&here, sizeof here) == 2);
        int more = go_on();
        CHECK_EQUAL(recv(to, bytes, 2, MSG_DONTWAIT), 2);
        CHECK(bytes[0] == 'y' && bytes[1] == count);
        CHECK(recv(to, bytes, 2, MSG_DONTWAIT) == -1 && errno == EAGAIN);
        count++;
        if (!more) break;
    } while (1);
    CHECK(setsockopt(to, SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof on) == -1 && errno == EPERM);
    PASS();
}
