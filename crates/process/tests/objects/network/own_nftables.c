// object: tables of nftables (and of iptables, which are made of them)
// status: refused: nftables of its own
// note: let the hosts, or the network, filter packets: what a ruleset remembers of connections could not be had again
#include "object.h"
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <sys/socket.h>

struct message {
    struct nlmsghdr header;
    struct nfgenmsg generic;
};

int main(void) {
    char batch[256] = {0};
    struct message *begin = (void *)batch, *table, *end;
    int netfilter = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    CHECK(netfilter >= 0);
    *begin = (struct message){{sizeof *begin, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 1, 0}, {AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES)}};
    table = (void *)(batch + NLMSG_ALIGN(sizeof *begin));
    struct nlattr *name = (void *)(table + 1);
    *table = (struct message){{sizeof *table + NLA_HDRLEN + 4, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK, 2, 0}, {AF_INET, NFNETLINK_V0, 0}};
    *name = (struct nlattr){NLA_HDRLEN + 4, NFTA_TABLE_NAME};
    memcpy(name + 1, "own", 4);
    end = (void *)((char *)table + table->header.nlmsg_len);
    *end = (struct message){{sizeof *end, NFNL_MSG_BATCH_END, NLM_F_REQUEST, 3, 0}, {AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES)}};
    size_t length = (char *)(end + 1) - batch;
    CHECK_EQUAL(send(netfilter, batch, length, 0), length);
    char answer[512];
    CHECK(recv(netfilter, answer, sizeof answer, 0) > 0);
    struct nlmsghdr *said = (void *)answer;
    CHECK_EQUAL(said->nlmsg_type, NLMSG_ERROR);
    CHECK_EQUAL(((struct nlmsgerr *)NLMSG_DATA(said))->error, 0);
    CHECK(!close(netfilter));
    ready();
    while (go_on()) {}
    PASS();
}
